"""Map stages, parameters, and options changed after the definition."""

from pipekit import map_stage


@map_stage(workers=2)
def scale(number: int, factor: int, offset: int = 0) -> int:
    return number * factor + offset


double = scale(2)  # a new stage; the item is not given here
double_and_one = scale(2, offset=1).setup(workers=1, qsize=10)

print(sorted((range(5) | double).results()))
print(sorted((range(5) | double | double_and_one).results()))
print(double.options.workers, double_and_one.options.qsize)

# Output:
# [0, 2, 4, 6, 8]
# [1, 5, 9, 13, 17]
# 2 10
