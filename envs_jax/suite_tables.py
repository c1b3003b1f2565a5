"""The rows of the catalogue for the suites of others, written down with the versions in README.md.

name -> (observation, number of actions, time limit in steps). Where a suite has no time limit,
10000 stands: its episodes end by themselves, almost always long before.
"""

CRAFTAX = {
    "Craftax-Symbolic-v1": ("(8268,)", 43, 100000),
    "Craftax-Pixels-v1": ("(130, 110, 3)", 43, 100000),
    "Craftax-Classic-Symbolic-v1": ("(1345,)", 17, 10000),
    "Craftax-Classic-Pixels-v1": ("(63, 63, 3)", 17, 10000),
}
PGX = {
    "2048": ("(4, 4, 31)", 4, 10000),
    "animal_shogi": ("(4, 3, 194)", 132, 10000),
    "backgammon": ("(34,)", 156, 10000),
    "chess": ("(8, 8, 119)", 4672, 10000),
    "connect_four": ("(6, 7, 2)", 7, 10000),
    "gardner_chess": ("(5, 5, 115)", 1225, 10000),
    "go_9x9": ("(9, 9, 17)", 82, 10000),
    "go_19x19": ("(19, 19, 17)", 362, 10000),
    "hex": ("(11, 11, 4)", 122, 10000),
    "kuhn_poker": ("(7,)", 2, 10000),
    "leduc_holdem": ("(34,)", 3, 10000),
    "minatar-asterix": ("(10, 10, 4)", 5, 10000),
    "minatar-breakout": ("(10, 10, 4)", 3, 10000),
    "minatar-freeway": ("(10, 10, 7)", 3, 10000),
    "minatar-seaquest": ("(10, 10, 10)", 6, 10000),
    "minatar-space_invaders": ("(10, 10, 6)", 4, 10000),
    "othello": ("(8, 8, 2)", 65, 10000),
    "shogi": ("(9, 9, 119)", 2187, 10000),
    "sparrow_mahjong": ("(11, 15)", 11, 10000),
    "tic_tac_toe": ("(3, 3, 2)", 9, 10000),
}
JUMANJI = {
    "BinPack-v2": ("(1180,)", 800, 10000),
    "CVRP-v1": ("(147,)", 21, 10000),
    "FlatPack-v0": ("(8446,)", 8100, 10000),
    "Game2048-v1": ("(20,)", 4, 10000),
    "GraphColoring-v1": ("(441,)", 20, 10000),
    "Knapsack-v1": ("(200,)", 50, 10000),
    "Maze-v0": ("(109,)", 4, 100),
    "Minesweeper-v0": ("(202,)", 100, 10000),
    "PacMan-v1": ("(1529,)", 5, 1000),
    "RubiksCube-partly-scrambled-v0": ("(55,)", 18, 20),
    "RubiksCube-v0": ("(55,)", 18, 200),
    "SlidingTilePuzzle-v0": ("(32,)", 4, 500),
    "Snake-v1": ("(725,)", 4, 4000),
    "Sudoku-v0": ("(810,)", 729, 10000),
    "Sudoku-very-easy-v0": ("(810,)", 729, 10000),
    "TSP-v1": ("(81,)", 20, 10000),
    "Tetris-v0": ("(157,)", 40, 400),
}
XMINIGRID = {
    "MiniGrid-BlockedUnlockPickUp": ("(7, 7, 25)", 6, 576),
    "MiniGrid-DoorKey-5x5": ("(7, 7, 25)", 6, 250),
    "MiniGrid-DoorKey-6x6": ("(7, 7, 25)", 6, 360),
    "MiniGrid-DoorKey-8x8": ("(7, 7, 25)", 6, 640),
    "MiniGrid-DoorKey-16x16": ("(7, 7, 25)", 6, 2560),
    "MiniGrid-Empty-5x5": ("(7, 7, 25)", 6, 100),
    "MiniGrid-Empty-6x6": ("(7, 7, 25)", 6, 144),
    "MiniGrid-Empty-8x8": ("(7, 7, 25)", 6, 256),
    "MiniGrid-Empty-16x16": ("(7, 7, 25)", 6, 1024),
    "MiniGrid-EmptyRandom-5x5": ("(7, 7, 25)", 6, 100),
    "MiniGrid-EmptyRandom-6x6": ("(7, 7, 25)", 6, 144),
    "MiniGrid-EmptyRandom-8x8": ("(7, 7, 25)", 6, 256),
    "MiniGrid-EmptyRandom-16x16": ("(7, 7, 25)", 6, 1024),
    "MiniGrid-FourRooms": ("(7, 7, 25)", 6, 100),
    "MiniGrid-LockedRoom": ("(7, 7, 25)", 6, 190),
    "MiniGrid-MemoryS8": ("(3, 3, 25)", 6, 320),
    "MiniGrid-MemoryS16": ("(3, 3, 25)", 6, 1280),
    "MiniGrid-MemoryS32": ("(3, 3, 25)", 6, 5120),
    "MiniGrid-MemoryS64": ("(3, 3, 25)", 6, 20480),
    "MiniGrid-MemoryS128": ("(3, 3, 25)", 6, 81920),
    "MiniGrid-Playground": ("(7, 7, 25)", 6, 512),
    "MiniGrid-Unlock": ("(7, 7, 25)", 6, 288),
    "MiniGrid-UnlockPickUp": ("(7, 7, 25)", 6, 288),
}
_XLAND = {  # rooms -> sizes of the grid
    1: (9, 11, 13, 15, 17),
    2: (9, 11, 13, 15, 17),
    4: (9, 11, 13, 15, 17),
    6: (13, 17, 19),
    9: (16, 19, 25),
}
XMINIGRID |= {
    f"XLand-MiniGrid-R{rooms}-{size}x{size}": ("(5, 5, 25)", 6, 3 * size * size)
    for rooms, sizes in _XLAND.items()
    for size in sizes
}
# name without "Navix-" and "-v0" -> height and width of the grid
_NAVIX = {
    "Empty-5x5": (5, 5),
    "Empty-6x6": (6, 6),
    "Empty-8x8": (8, 8),
    "Empty-16x16": (16, 16),
    "Empty-Random-5x5": (5, 5),
    "Empty-Random-6x6": (6, 6),
    "Empty-Random-8x8": (8, 8),
    "Empty-Random-16x16": (16, 16),
    "DoorKey-5x5": (5, 5),
    "DoorKey-6x6": (6, 6),
    "DoorKey-8x8": (8, 8),
    "DoorKey-16x16": (16, 16),
    "DoorKey-Random-5x5": (5, 5),
    "DoorKey-Random-6x6": (6, 6),
    "DoorKey-Random-8x8": (8, 8),
    "DoorKey-Random-16x16": (16, 16),
    "FourRooms": (19, 19),
    "KeyCorridorS3R1": (3, 7),
    "KeyCorridorS3R2": (5, 7),
    "KeyCorridorS3R3": (7, 7),
    "KeyCorridorS4R3": (10, 10),
    "KeyCorridorS5R3": (13, 13),
    "KeyCorridorS6R3": (16, 16),
    "LavaGapS5": (5, 5),
    "LavaGapS6": (6, 6),
    "LavaGapS7": (7, 7),
    "SimpleCrossingS9N1": (9, 9),
    "SimpleCrossingS9N2": (9, 9),
    "SimpleCrossingS9N3": (9, 9),
    "SimpleCrossingS11N5": (11, 11),
    "Dynamic-Obstacles-5x5": (5, 5),
    "Dynamic-Obstacles-5x5-Random": (5, 5),
    "Dynamic-Obstacles-6x6": (6, 6),
    "Dynamic-Obstacles-6x6-Random": (6, 6),
    "Dynamic-Obstacles-8x8": (8, 8),
    "Dynamic-Obstacles-16x16": (16, 16),
    "DistShift1": (7, 9),
    "DistShift2": (7, 9),
    "GoToDoor-5x5": (5, 5),
    "GoToDoor-6x6": (6, 6),
    "GoToDoor-8x8": (8, 8),
}
NAVIX = {
    f"Navix-{name}-v0": (f"({height}, {width}, 21)", 7, 100)
    for name, (height, width) in _NAVIX.items()
}
SEQUENCES = {
    "sum": ("(4, 10)", 10, 2),
    "parity": ("(17, 3)", 3, 9),
    "two_tasks": ("(6, 12)", 12, 2),
    "pareto": ("(4, 32)", 32, 3),
    "dsl": ("(10, 27)", 27, 1),
    "router": ("(87,)", 7, 4),
}
# Steps of the host, one environment after the other: (observation, action, time limit).
GYMNASIUM = {
    "CartPole-v1": ("(4,)", "Discrete(2)", 500),
    "Acrobot-v1": ("(6,)", "Discrete(3)", 500),
    "MountainCar-v0": ("(2,)", "Discrete(3)", 200),
    "MountainCarContinuous-v0": ("(2,)", "Box(-1, 1, (1,))", 999),
    "Pendulum-v1": ("(3,)", "Box(-2, 2, (1,))", 200),
    "FrozenLake-v1": ("Discrete(16)", "Discrete(4)", 100),
    "Ant-v5": ("(105,)", "Box(-1, 1, (8,))", 1000),
    "HalfCheetah-v5": ("(17,)", "Box(-1, 1, (6,))", 1000),
    "Hopper-v5": ("(11,)", "Box(-1, 1, (3,))", 1000),
    "Humanoid-v5": ("(348,)", "Box(-0.4, 0.4, (17,))", 1000),
    "HumanoidStandup-v5": ("(348,)", "Box(-0.4, 0.4, (17,))", 1000),
    "InvertedDoublePendulum-v5": ("(9,)", "Box(-1, 1, (1,))", 1000),
    "InvertedPendulum-v5": ("(4,)", "Box(-3, 3, (1,))", 1000),
    "Pusher-v5": ("(23,)", "Box(-2, 2, (7,))", 100),
    "Reacher-v5": ("(10,)", "Box(-1, 1, (2,))", 50),
    "Swimmer-v5": ("(8,)", "Box(-1, 1, (2,))", 1000),
    "Walker2d-v5": ("(17,)", "Box(-1, 1, (6,))", 1000),
}

# Why `make` refuses them.
_AGENTS = "it is played by several agents"
LEFT_OUT = {
    **{
        f"jumanji/{name}": _AGENTS
        for name in (
            "Cleaner-v0",
            "Connector-v3",
            "LevelBasedForaging-v0",
            "MMST-v0",
            "MultiCVRP-v0",
            "RobotWarehouse-v0",
            "SearchAndRescue-v0",
        )
    },
    "jumanji/JobShop-v0": "an action is a choice for each of ten machines, 21^10 of them",
    "jumanji/Sokoban-v0": "it downloads its levels",
    "pgx/bridge_bidding": "it downloads its deals",
}
