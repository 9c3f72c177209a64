"""Private servers for the tests: one module each, started on a free loopback port in a folder of
its own, ended by pid. `Missing` says which Debian package would bring a server that is not here."""
