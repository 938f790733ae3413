"""Which machine this is: hosts, installs from locks, wheelhouse, doctor."""
