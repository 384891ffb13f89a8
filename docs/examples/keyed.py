"""Several workers, but all of one account in one of them, in order: each can keep the balances of its accounts."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipekit import stage


class Payment(NamedTuple):
    account: str
    amount: int


def account(payment: Payment) -> str:
    return payment.account


@stage(workers=4, key=account)
def balances(payments: Iterable[Payment]) -> Iterator[tuple[str, int]]:
    balance: defaultdict[str, int] = defaultdict(int)
    for payment in payments:
        balance[payment.account] += payment.amount
        if balance[payment.account] < 0:
            yield payment.account, balance[payment.account]


PAYMENTS = [Payment(name, amount) for name in ("ann", "bob", "claire") for amount in (50, -70, 40)]
pipe = PAYMENTS | balances
print(sorted(pipe.results()))

# Output:
# [('ann', -20), ('bob', -20), ('claire', -20)]
