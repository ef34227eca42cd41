"""The federation: what honest clients and an honest server do."""

import os

# Flower reads this one when it is first imported, hence before any module of this package.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
