import pytest

from fastsd_lib.environment import hosts

SIGNS = (
    "COLAB_RELEASE_TAG",
    "KAGGLE_KERNEL_RUN_TYPE",
    "RUNPOD_POD_ID",
    "PAPERSPACE_NOTEBOOK_REPO_ID",
    "PAPERSPACE_FQDN",
)


@pytest.fixture(autouse=True)
def _no_host(monkeypatch):
    for name in SIGNS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("sign", "host"),
    [
        ("COLAB_RELEASE_TAG", "colab"),
        ("KAGGLE_KERNEL_RUN_TYPE", "kaggle"),
        ("RUNPOD_POD_ID", "runpod"),
        ("PAPERSPACE_FQDN", "paperspace"),
    ],
)
def test_each_host_is_known_by_what_it_sets(sign, host, monkeypatch):
    assert hosts.which() == "plain"
    monkeypatch.setenv(sign, "1")
    assert hosts.which() == host


def test_sessions_go_to_drive_on_colab_only_while_it_is_mounted(tmp_path, monkeypatch):
    point, table = tmp_path / "drive", tmp_path / "mounts"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    monkeypatch.setattr(hosts, "DRIVE_MOUNTS", (tmp_path / "none", point))
    monkeypatch.setattr(hosts, "MOUNT_TABLE", table)
    table.write_text("overlay / overlay rw 0 0\n")
    (point / "MyDrive" / "Colab Notebooks").mkdir(parents=True)
    assert hosts.mounted_drive() is None  # a folder that only looks like Drive
    assert hosts.default_root() == hosts.Path.home() / "fastsd"
    table.write_text(f"overlay / overlay rw 0 0\ndrive {point} fuse.drive rw 0 0\n")
    assert hosts.mounted_drive() == point
    assert hosts.default_root() == point / "MyDrive"


def test_elsewhere_sessions_go_to_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hosts.default_root() == tmp_path / "fastsd"
