"""Forms, pickers, caption editor and progress for notebooks."""
