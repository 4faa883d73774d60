"""Data hyper-cleaning, judged fairly: learn one weight for each example, then train from scratch.

    python -m benchmarks.hyper_cleaning --data-dir data --models softmax cnn

Half of 10,000 training images of Fashion-MNIST get a wrong label, drawn from the nine other
classes: none is right by chance. On 5,000 clean images an algorithm learns the weights x,

    min_x  mean CE(y*(x); clean)    y*(x) = argmin  mean_i sigmoid(x_i) CE_i(y) + decay ||y||^2 / 4

(the weights start at one half, so that the inner loss starts as half of the training objective).
Its inner variable has seen the clean images through x and is thrown away. The judge is a model of a
fresh initialisation, trained to the end on the weights alone, by one recipe for every row: all
examples alike; the clean half alone (the weights of an oracle, 1 and 0); the weights of each
algorithm; and the clean validation images alone. Each seed draws its own wrong labels,
initialisations and minibatches; rates were tuned on seed 99. Prints a table, writes JSON and PNG.

Problem: Franceschi, Donini, Frasconi and Pontil, ICML 2017.
"""
