"""One function per notebook step: rooms are introduced to each other here."""
