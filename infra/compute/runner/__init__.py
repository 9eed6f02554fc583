"""SHIPPED beside every program, to this machine's scratch folder and to a cluster's node alike: its parent there.

It imports nothing of ours but its own folder, and what it imports must be in the environment of the pipeline.
"""
