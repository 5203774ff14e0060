"""A static page of results: images side by side, tables, plots, layers."""
