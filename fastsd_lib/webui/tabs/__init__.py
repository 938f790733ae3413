"""The tabs of the page in the browser, each in its file."""
