"""Photos in: reading any format safely, smart crop, captions, grids."""
