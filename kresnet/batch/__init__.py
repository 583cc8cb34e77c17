"""Answers for any number of images: each exactly once in a table, whatever ends the job.

The images are cut into parts. Workers, processes of this machine or of a cluster, answer for a part
at a time, and the one process that hands them out writes each part's rows as a file, whole or not
at all. The same command again does the parts that are not there; the last one joins them.
"""
