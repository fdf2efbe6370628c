"""Side-by-side measurements of pyvmm against its peers; each `bench/NAME` is one command."""
