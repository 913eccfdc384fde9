"""Profiler: measures an engine over a load grid, fits its step-time model, and checks what it predicts."""
