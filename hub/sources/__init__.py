"""DOORS IN. Each hands `Received` messages to the one transaction and acknowledges nothing before its commit.

* `kafka`     the Faust worker: batches, positions, what to do when something is wrong
* `consumer`  how Faust's consumer is made to start from the database and to read committed records only
* `reader`    a second, independent look at a topic, for gaps and for the watchdog
"""
