import os

import pytest

from nsaug.utils.errors import UserError
from nsaug.utils.processes import check_num_processes


def test_more_processes_than_cores_can_run_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    check_num_processes("devices=8", 8)
    with pytest.raises(UserError, match="devices=9: 9 processes are too many for 2 CPU cores: set it to 2 or less"):
        check_num_processes("devices=9", 9)
