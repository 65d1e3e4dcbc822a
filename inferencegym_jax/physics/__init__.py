"""What a GPU does in one second: the closed loop of tasks 1 to 3, the open-loop engine of all others."""
