"""`--fuzz-seconds N`: so long every target is fuzzed; CI's default keeps all of them together under two minutes."""


def pytest_addoption(parser):
    parser.addoption("--fuzz-seconds", type=float, default=8, help="seconds for each target of tests/fuzz")
