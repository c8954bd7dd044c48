"""Links to other people's meshes: who they are, what is shared with them, and what they may cost."""
