"""Real checkouts of other web UIs, fetched, started and watched on this machine; the door stands in front of them."""
