"""What a second and an episode are worth: reward, graders, what is counted of an episode."""
