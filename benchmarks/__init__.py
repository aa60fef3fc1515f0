"""Side by side with what a user would take instead: `make bench` measures, and writes docs/performance.md."""

BENCHMARKS = (
    "c_store_receive",
    "series_reading",
    "sliding_window",
    "network_forward",
    "result_making",
    "seg_writing",
    "whole_job",
    "worker_memory",
    "segment_reads",
    "rest_upload",
    "job_queue",
    "start_up",
)
