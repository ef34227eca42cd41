from attacks.inversion.budget import Budget


def test_all_parts_of_a_budget_share_one_count():
    root = Budget()
    whole = root.of(100)
    stage = whole.until(40)
    for _ in range(30):
        stage.spend()
    more = stage.more(20)
    assert [budget.spent for budget in (root, whole, stage, more)] == [30] * 4
    assert [budget.left for budget in (whole, stage, more)] == [70, 10, 20]
    assert root.left == float("inf")


def test_what_is_overspent_leaves_nothing():
    budget = Budget().of(1)
    budget.spend()
    budget.spend()
    assert budget.left == 0


def test_shares_are_of_the_whole_attack_rounded_down():
    stage = Budget().of(1001).until(10)
    assert stage.share(1 / 8) == 125
    assert stage.share(2.0) == 2002
    assert stage.share(1) == 1001
