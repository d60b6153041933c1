"""A rule whose second block raises at batch 7."""

from actors.rules.local import Local


class Failing(Local):
    """Raises at batch 7."""

    def now(self, p, credit):
        if p.batch.batch_id == 7 and self.place.index == 1:
            raise ArithmeticError("the seventh batch is not to my taste")
        return super().now(p, credit)
