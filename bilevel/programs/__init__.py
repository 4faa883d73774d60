from bilevel.programs._quadratic import quadratic_program
from bilevel.programs._status import ProgramInfo, ProgramSolution, ProgramStatus
