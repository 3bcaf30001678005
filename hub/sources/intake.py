from hub.store.intake import Intake, PartitionKey, StoreUnavailableError, Taken  # noqa: F401
