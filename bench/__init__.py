"""Each figure in the README comes from one command here, beside the peer it is compared with."""
