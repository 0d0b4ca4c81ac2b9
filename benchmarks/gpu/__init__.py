"""What a GPU does with trustbench: checks, times against floors and peers, and the run end to end."""
