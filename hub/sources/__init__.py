"""DOORS IN. Each hands `Received` messages to the one transaction and acknowledges nothing before its commit.

* `kafka`            the Faust worker: how it is put together, started and stopped
* `kafka_source`     the rules: positions, gaps, brakes, messages that kill
* `kafka_consumer`   what of Faust's consumer had to be changed
* `kafka_reader`     a second, independent look at a topic
* `kafka_watchdog`   leaves when nothing moves
"""
