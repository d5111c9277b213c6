"""Where the data folder lies is told to the operator on the same machine, and to nobody else."""

from support.testclient import TestClient

REMOTE = ("192.0.2.1", 5)


def told(http, key=None, **options):
    """What ``GET /models`` says of the folder to who asks in this way."""
    other = TestClient(http.app, raise_server_exceptions=False, **options)
    other.app_state.update(http.app_state)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = other.get("/models", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["data_dir"]


def test_the_folder_is_told_to_the_operator_on_this_machine_alone(http, settings):
    """Neither to a key without admin, nor to another tenant's admin, nor from elsewhere."""
    before = told(http)
    admin = http.post("/keys", json={"name": "admin", "scopes": ["admin"]}).json()["key"]
    bearer = {"Authorization": f"Bearer {admin}"}

    def key(**fields):
        return http.post("/keys", json={"name": "other", **fields}, headers=bearer).json()[
            "key"
        ]

    others = [key(), key(scopes=["admin"], tenant="team")]

    assert before == told(http, admin) == str(settings.data_dir)
    assert [told(http, other) for other in others] == [None, None]
    assert told(http, admin, client=REMOTE) is None
