"""Jobs as service and worker both keep them: records, queue, results and datasets."""
