"""Networks of one user's guests: a switch process that the first guest starts, and that ends with its last port."""
