"""Boot protocols: kernels and tables in as bytes, `(guest-physical address, bytes)` pieces and an entry state out."""
