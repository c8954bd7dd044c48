"""Disputes with other people's meshes: raised, talked through and followed."""
