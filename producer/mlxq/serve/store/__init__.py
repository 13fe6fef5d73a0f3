"""What `mlxq serve` keeps on the disk: records of files and batches, and the files. Knows no HTTP and no queue."""
