"""What a GPU does in one second: the closed loop of tasks 1 to 3, and the open loop of tasks 4 and up.

Open loop: ``kernels`` (lookups) -> ``iteration`` (what one takes) -> ``inflow``, ``admission``, ``pool``, ``flow``,
``chance``, ``shared_iterations``, ``solution``, ``fluid`` (who enters, runs and leaves) -> ``line``, ``first_token``,
``on_time`` (who waits, how long, and who is late), ``switching`` (what a change of the weight format or of the number
of GPUs costs) -> ``serving`` (the second) -> ``open_loop`` (the step).
"""
