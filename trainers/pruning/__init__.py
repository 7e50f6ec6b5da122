"""A trained network made smaller: whole channels are cut out of its layers, and what is left is trained again.

network.py    which channels, and the network without them: torch-pruning, of the extra `prune`
run.py        the run of the smaller network, from the best weights of another
command.py    its command line
"""
