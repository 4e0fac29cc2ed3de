"""The report page: self-contained, escaped, and its sentences true."""

from __future__ import annotations

from html.parser import HTMLParser

from timm_neutreno_cli.reports.html import Section, compare, describe, metric_section, render

from timm_neutreno.smoothing import Smoothing, plot_results


def result(name: str, values: list[float]) -> Smoothing:
    return Smoothing(name, 3, {"block_similarity": values}, {"block_similarity": [0.125] * len(values)})


PLAIN, BETTER = result("plain", [0.1, 0.5, 0.9]), result("better", [0.1, 0.25, 0.5])


class Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.alts += [value for name, value in attrs if name == "alt"]


def test_the_page_holds_its_pictures_and_asks_the_network_for_nothing(tmp_path):
    plot_results([PLAIN, BETTER], tmp_path / "plot.svg")
    page = render("Title", ["Words."], [metric_section([PLAIN, BETTER], "block_similarity", tmp_path / "plot.svg")])
    parser = Addresses()
    parser.feed(page)
    assert [address[:26] for address in parser.found] == ["data:image/svg+xml;base64,"]
    assert all(parser.alts)
    assert "@import" not in page
    assert "url(" not in page


def test_names_are_escaped():
    page = render("<b>", ["a < b"], [Section("</h2><script>", ["&"])])
    assert "<script>" not in page
    assert "a &lt; b" in page


def test_a_table_beside_a_plot_is_folded_up(tmp_path):
    plot_results([PLAIN], tmp_path / "plot.svg")
    alone, beside = (
        render("t", [], [Section("s", [], plots, [["a"]])]) for plots in ((), [(tmp_path / "plot.svg", "p")])
    )
    assert "<details>" not in alone
    assert "<details>" in beside


def test_a_verdict_s_word_is_shown_in_colour_and_the_rest_is_text():
    page = render("t", ["Worse: a < b.", "No difference shown: c.", "Nothing: d."], [])
    assert '<p><span class="word worse">Worse</span> a &lt; b.</p>' in page
    assert '<span class="word open">No difference shown</span> c.' in page
    assert "<p>Nothing: d.</p>" in page


def test_facts_code_and_links_are_escaped():
    page = render(
        "t", [], [Section("s", [], facts=[("a<", "b&")], code="x < y", links=[('seed-0/"', "seed <0>")])], "end"
    )
    assert "<td>a&lt;</td><td>b&amp;</td>" in page
    assert "<pre>x &lt; y</pre>" in page
    assert '<a href="seed-0/&quot;">seed &lt;0&gt;</a>' in page
    assert "<footer>end</footer>" in page


def test_sentences_say_what_the_numbers_do():
    assert describe("plain", [0.1, 0.9, 0.5]) == (
        "plain goes from 0.1 in layer 1 to 0.5 in layer 3; its highest is 0.9 in layer 2, its lowest 0.1 in layer 1."
    )
    assert compare(BETTER, PLAIN, "block_similarity") == (
        "Compared with plain, better is lower in 2 and higher in 0 of 3 layers (mean difference -0.217)."
    )
    assert "another number of layers" in compare(result("deep", [0.1] * 4), PLAIN, "block_similarity")


def test_every_layer_of_every_model_is_in_the_table(tmp_path):
    plot_results([PLAIN], tmp_path / "plot.svg")
    section = metric_section([PLAIN, result("deep", [0.1] * 4)], "block_similarity", tmp_path / "plot.svg")
    assert section.table[0] == ["layer", "plain (std)", "deep (std)"]
    assert section.table[3] == ["3", "0.9 (0.12)", "0.1 (0.12)"]
    assert section.table[4] == ["4", "", "0.1 (0.12)"]
