"""One `Config` -> one finished run directory.

prepare   reads, checks and splits the data, and names the run (no torch)
build     makes the network, its head, scorer and training task; rebuilds those of a finished run
execute   trains, scores and records the run, or continues what an earlier attempt left
finalize  scores validation and test with the selected weights, and writes tables and pictures
evaluate  scores a finished run again
"""
