"""Where images come from, and which one comes when."""
