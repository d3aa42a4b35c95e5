"""Parts of the variational backend: coordinates, guides, objectives and the loop that fits them."""
