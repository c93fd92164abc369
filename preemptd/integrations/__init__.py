"""What a training script imports beside `preemptd` itself: each module stands on the client, and on its framework."""
