"""A swarm of meshes in virtual time, to try policies on: the node's own rules, hostile peers, cuts and wrong clocks."""
