"""For plain pytest: see shared.py. child.py loads that by name, so that tests in other folders have it as well."""
from shared import *  # noqa: F401, F403
