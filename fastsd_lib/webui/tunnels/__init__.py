"""Public addresses for the web server: one function per way, and a supervisor that keeps one of them up."""
