"""The ladder: from the draws of the network to an answer that passes its gate."""
