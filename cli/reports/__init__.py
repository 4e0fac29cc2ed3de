"""What is said of results: tables, verdicts, pages."""
