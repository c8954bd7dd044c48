"""Words that meshes make for themselves: proposed, adopted, read otherwise, retired."""
