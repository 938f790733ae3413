"""The project's own figures beside its peers'; every claim in the README comes from here."""
