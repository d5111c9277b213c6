"""What an experiment tracker is told of plans and evaluations."""
