"""Optimizer steps: GRPO, supervised steps, snapshots, the fleet.

It must not know the purpose of a training or the meaning of its reward.
"""
