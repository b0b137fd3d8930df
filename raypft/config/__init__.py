"""What a run is: the job, how it is loaded, what goes with what."""
